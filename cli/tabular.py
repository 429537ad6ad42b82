"""`tabular impute` and `tabular balance`: missing cells filled in, and rows added to rare labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from typicality.errors import SettingsError

from .console import print_document, print_json, say
from .evaluation import AtLeast, Write, finish, parse_limits, show_plan
from .options import WORK, Common, given, with_options

app = typer.Typer(help="The same for tables: fill in missing cells, add rows to rare labels.", no_args_is_help=True)

Table = Annotated[Path, typer.Argument(metavar="TABLE", help="A .csv, .tsv, .jsonl or .parquet file.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="COLUMN", help="Left as it is, not learned from; again for more."),
]
Missing = Annotated[
    list[str] | None, typer.Option("--missing", metavar="TEXT", help="Stands for a missing cell; again for more.")
]
Category = Annotated[
    list[str] | None,
    typer.Option("--category", metavar="COLUMN", help="Its numbers are names of categories; again for more."),
]
Categories = Annotated[
    int, typer.Option("--categories", min=2, help="Text with more different values is left as it is.")
]
Steps = Annotated[
    int, typer.Option("--steps", min=1, help="Training steps; fewer where they help no more.", rich_help_panel=WORK)
]
SamplerSteps = Annotated[int, typer.Option("--sampler-steps", min=1, rich_help_panel=WORK)]
Evaluate = Annotated[bool, typer.Option("--evaluate", help="Measure it beside what is usual, and write no table.")]
OWN = "a table has a small model of its own, which is trained on the CPU"


def resolved(kind: type[Any], common: Common, **given: Any) -> Any:
    """Return the options of a command; `--seed` is 0 where it is not given."""
    common.pass_over("config", "set", "model", "device", "dtype", why=OWN)
    chosen = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    return kind(**chosen, seed=common.seed or 0)


def only_for_evaluation(**values: Any) -> None:
    for name in given(**values):
        raise SettingsError(f"--{name.replace('_', '-')} needs --evaluate, which measures")


def done(summary: dict[str, Any], common: Common, write: Path | None) -> None:
    from typicality.store import write_json

    if write is not None:
        write_json(write, summary)
    if common.json:
        return print_json(summary)
    if not common.quiet:
        for note in summary["notes"]:
            say(f"note: {note}")
    hidden = ("notes", "options", "training", "learned", "table")
    print_document({name: value for name, value in summary.items() if name not in hidden})
    return None


@app.command()
@with_options
def impute(
    common: Common,
    table: Table,
    label: Annotated[
        str | None,
        typer.Option("--label", "-l", metavar="COLUMN", help="Left as it is: no cell is filled with its help."),
    ] = None,
    ignore: Ignore = None,
    missing: Missing = None,
    category: Category = None,
    categories: Categories = 50,
    samples: Annotated[
        int, typer.Option("--samples", min=2, help="Completions drawn of a row.", rich_help_panel=WORK)
    ] = 20,
    steps: Steps = 3000,
    sampler_steps: SamplerSteps = 20,
    evaluate: Evaluate = False,
    hide: Annotated[
        float | None, typer.Option("--hide", help="Share of the known cells that --evaluate hides [0.2].")
    ] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, help="Of --evaluate [3].")] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Fill in every missing cell of a table from the joint distribution of its columns.

    Goes to --out FILE, or TABLE-imputed, with the uncertainty of every filled cell in a second file beside it.
    """
    from typicality.tabular import impute as work
    from typicality.tabular.imputation_benchmark import HIDE, REPEATS, check, evaluate_imputation
    from typicality.tabular.preparing import prepare

    limits = parse_limits(at_least)
    options = resolved(
        work.ImputeOptions, common, label=label, ignore=ignore, missing=missing, category=category,
        categories=categories, samples=samples, steps=steps, sampler_steps=sampler_steps,
    )  # fmt: skip
    if evaluate:
        common.pass_over("out", "fresh", why="--evaluate measures, and writes no table")
        hide, repeats = HIDE if hide is None else hide, REPEATS if repeats is None else repeats
        check(hide, repeats)
        if common.dry_run:
            found = prepare(table, options).summary() | {"hide": hide, "repeats": repeats}
            return show_plan(found | {"options": options.as_dict()}, common)
        return finish(
            "tabular impute", evaluate_imputation(table, options, hide, repeats, common.progress), limits, common, write
        )
    only_for_evaluation(at_least=at_least, hide=hide, repeats=repeats)
    if common.dry_run:
        planned, path, beside = work.plan(table, common.out, options, common.fresh)
        gaps = {c.name: int(c.gaps.sum()) for c in planned.columns if c.gaps.any()}
        places = {"out": str(path), "uncertainty": str(beside), "missing": gaps}
        return show_plan(planned.summary() | places | {"options": options.as_dict()}, common)
    return done(work.impute(table, common.out, options, common.fresh, common.progress).summary, common, write)


@app.command()
@with_options
def balance(
    common: Common,
    table: Table,
    label: Annotated[str, typer.Option("--label", "-l", metavar="COLUMN", help="Column that holds the label.")],
    rare: Annotated[
        list[str] | None,
        typer.Option("--rare", metavar="VALUE", help="Label to add rows to; again for more [all that are rarer]."),
    ] = None,
    ratio: Annotated[
        float, typer.Option("--ratio", help="Rows of a rare label, as a share of the most frequent one's.")
    ] = 1.0,
    quantile: Annotated[
        float,
        typer.Option("--quantile", help="Drop rows less typical than this quantile of the real ones."),
    ] = 0.05,
    ignore: Ignore = None,
    missing: Missing = None,
    category: Category = None,
    categories: Categories = 50,
    draws: Annotated[int, typer.Option("--draws", help="Draws of a row's typicality.", rich_help_panel=WORK)] = 32,
    steps: Steps = 3000,
    sampler_steps: SamplerSteps = 20,
    evaluate: Evaluate = False,
    repeats: Annotated[int | None, typer.Option("--repeats", min=2, help="Splits of --evaluate [5].")] = None,
    test: Annotated[
        float | None, typer.Option("--test", help="Share of the real rows that judges in --evaluate [0.3].")
    ] = None,
    at_least: AtLeast = None,
    write: Write = None,
) -> None:
    """Add synthetic rows of rare labels, each with its typicality; what is not typical or a copy is dropped.

    Goes to --out FILE, or TABLE-balanced: the rows of the table, then the new ones, marked in the column synthetic.
    """
    from typicality.tabular import balance as work
    from typicality.tabular import balance_benchmark as benchmark

    limits = parse_limits(at_least)
    options = resolved(
        work.BalanceOptions, common, label=label, rare=rare, ratio=ratio, quantile=quantile, ignore=ignore,
        missing=missing, category=category, categories=categories, draws=draws, steps=steps,
        sampler_steps=sampler_steps,
    )  # fmt: skip
    where: dict[str, Any]
    if evaluate:
        common.pass_over("out", "fresh", why="--evaluate measures, and writes no table")
        repeats, test = benchmark.REPEATS if repeats is None else repeats, benchmark.TEST if test is None else test
        if not common.dry_run:
            result = benchmark.evaluate_balance(table, options, repeats, test, common.progress)
            return finish("tabular balance", result, limits, common, write)
        planned, labels, asked, _ = benchmark.plan(table, options, repeats, test)
        where = {"repeats": repeats, "test": test}
    else:
        only_for_evaluation(at_least=at_least, repeats=repeats, test=test)
        if not common.dry_run:
            return done(work.balance(table, common.out, options, common.fresh, common.progress).summary, common, write)
        planned, labels, asked, path = work.plan(table, common.out, options, common.fresh)
        where = {"out": str(path)}
    more = {labels.names[i]: {"real": int(labels.counts[i]), "asked": count} for i, count in asked.items()}
    return show_plan(planned.summary() | where | {"labels": more, "options": options.as_dict()}, common)
