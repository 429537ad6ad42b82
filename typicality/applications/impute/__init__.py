"""Imputation: missing, damaged or marked regions of images, filled in from what the model knows of their label.

What an imputation leaves in the run directory, in `impute/<key>/`:

    imputed.parquet   a row an image (`run.SCHEMA`): its region, the typicality of what was filled in, the spread
                      between samples, and the errors of all methods where the truth is known
    filled/<name>-<image_id>.png   the image in its original size: filled where it was missing, elsewhere unchanged
    spread/<name>-<image_id>.png   grey: standard deviation between samples, in levels of 255
    shards/           the rows of finished shards (Parquet), each written after its pictures: what is done is not done
                      again
    sheet.png         original, hole, fill and spread of some images
    summary.json      options, counts, means with standard errors, the comparison with simple methods
"""
