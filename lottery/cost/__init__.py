"""What a network costs: multiply-adds, memory, time and energy."""
