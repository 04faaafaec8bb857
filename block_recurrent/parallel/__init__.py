"""Where arrays lie: devices, and which axis of an array is shared out over them."""
