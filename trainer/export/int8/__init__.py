"""Eight bits: products of integers, or weights alone. Post-training, on calibration images; `write` says what stays float."""
