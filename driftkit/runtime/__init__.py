"""What the machine gives: device, number formats, random streams, process group."""
