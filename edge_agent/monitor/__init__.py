"""What the board does: sensors, the 1 Hz sampler, energy, telemetry, the pressure guard, doctor."""
