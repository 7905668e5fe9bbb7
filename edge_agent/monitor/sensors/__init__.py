"""What the board says about itself: one file per subsystem, each read below a given root."""
