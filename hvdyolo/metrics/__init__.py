"""COCO average precision, mergeable over ranks."""
