"""How good the predictions are: COCO AP, precision, recall."""
