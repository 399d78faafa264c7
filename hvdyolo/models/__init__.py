"""YOLOv5 networks, built from their YAML descriptions."""
