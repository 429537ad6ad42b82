"""Rivals of typicality, run on the same images and folds: what a finding must be better than to be worth its cost."""
