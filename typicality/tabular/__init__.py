"""Tables: missing cells filled in, and rare labels given more rows, with a small diffusion model of rows.

    table -> columns (numbers, categories) -> encoding -> gaussian + denoiser -> impute, balance

`judging`, `rivals`, `imputation_benchmark` and `balance_benchmark` measure both beside what is usual.
"""
