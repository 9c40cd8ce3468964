"""Pages and pictures that show what a detector does: self-contained HTML, contact sheets."""
