"""Translate: real images re-synthesised as another label, with typicality of both sides under the same noise.

What a translation leaves in the run directory, in `translate/<A>-<B>-<key>/`:

    translations.parquet   a row an image (`run.SCHEMA`): typicality before and after under both labels, the label
                           that the model gives before and after, the boxes whose typicality changed most
    shards/                latents before and after (safetensors) with the rows of the shard (Parquet); written whole,
                           so that what is done is not done again
    pictures/<image_id>.png   source, result and map of the change, side by side
    strips.png             the same for the images that changed most
    summary.json           options, counts, flips, mean changes

and in `translate/pairs.parquet` a row a pair of labels.
"""
