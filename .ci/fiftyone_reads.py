"""Read an export with FiftyOne's own importer: python fiftyone_reads.py FOLDER NUMBER_OF_ELEMENTS.

`fiftyone.Dataset.from_dir` uses this importer as well, and then stores what it yields in MongoDB, which no package
registry offers; the importer alone needs no database.
"""

import sys

from fiftyone.utils.data import FiftyOneImageDetectionDatasetImporter

importer = FiftyOneImageDetectionDatasetImporter(dataset_dir=sys.argv[1])
found = 0
with importer:
    for path, _, detections in importer:
        for detection in detections.detections:
            x, y, width, height = detection.bounding_box
            edges = [0, x, x + width, 1 + 1e-6, 0, y, y + height, 1 + 1e-6]
            assert edges[:4] == sorted(edges[:4]), (path, detection.bounding_box)
            assert edges[4:] == sorted(edges[4:]), (path, detection.bounding_box)
            assert width * height > 0, (path, detection.bounding_box)
            assert detection.label, path
            assert detection["typicality"] is not None, path
            found += 1
assert found == int(sys.argv[2]), f"FiftyOne reads {found} elements of {sys.argv[2]}"
print(f"FiftyOne reads {found} elements")
