"""How fast detectors are: timing in turns, and other people's code beside ours."""
