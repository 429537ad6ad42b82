"""Write emoji with labels at random and a glyph planted in a share of each label's images, as a stranger finds them.

    python reports/benchmarks/plant_marker.py reports/marker --place free

What was planted where lies beside the data set, in `<OUT>-truth.csv`, so that no audit can read it.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from typicality.config import config_of, resolve
from typicality.evaluation.planting import Planting, choose_images, write_planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--place", choices=("free", "fixed"), default="free")
    parser.add_argument("--prevalence", type=float, default=0.3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=5)
    chosen = parser.parse_args()
    dataset = resolve(config_of("emoji"), {"dataset": {"source": "emoji", "label": "year"}}).dataset
    planting = Planting(prevalence=chosen.prevalence, place=chosen.place, distractors=())
    write_planted(chosen.out, choose_images(dataset, chosen.images, chosen.seed), planting, chosen.seed, 2.0)
    table = chosen.out / "metadata.csv"
    table.replace(truth := chosen.out.with_name(f"{chosen.out.name}-truth.csv"))
    with truth.open(newline="") as source, table.open("w", newline="") as target:
        rows = list(csv.DictReader(source))
        writer = csv.DictWriter(target, ("file_name", "label", "group"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    planted = sum(row["planted"] != "[]" for row in rows)
    print(f"{len(rows)} images in {chosen.out}, {planted} with a glyph; truth in {truth}")


if __name__ == "__main__":
    main()
