"""RT-DETR and its parts."""
