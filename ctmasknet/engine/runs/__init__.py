"""What makes a training one run: its folder, what it is resumed with, how it is asked to end."""
