"""What can be done with a trained network besides training one: `task=NAME checkpoint=PATH`, one function a file."""
