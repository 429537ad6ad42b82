"""Where in an image a label shows: maps, boxes and masks from what the model says under that label.

In the run directory:

    localization.parquet      a row a box: image_id, file_name, label, x0, y0, x1, y1 (pixels of the original), score,
                              area (pixels), threshold
    localize/maps/            safetensors of the maps at latent size, (n, h, w) float32, and index.parquet: image_id,
                              file_name, label, shard, row, threshold, part (validation, test, training, or unmarked:
                              of no known place, and not seen by the model), and the view (width, height, scale_x,
                              scale_y, left, top)
    localize/overlays/*.png   the image beside its map with boxes, and with what is marked
    localize/masks/*.png      white where the map reaches the threshold
    localize/summary.json     what the command prints with --json

`threshold_by` in the summary says where a threshold comes from: the best IoU of the validation part, where ground truth
is named and marks the label there; without ground truth but with a reference label (`--against`), the 99% quantile of
that label's own images, which the model and the memory have not seen; else Otsu's method, or outliers where Otsu would
mark more than a quarter of all cells of what is but one class.
"""

from typicality.applications.localize.work import Localization, localize, plan_of

__all__ = ["Localization", "localize", "plan_of"]
