"""Training: the loop, the optimizer and its schedule, the budget, the device and several processes."""
