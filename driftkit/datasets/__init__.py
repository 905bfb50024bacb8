"""Where images come from: generated shapes, CIFAR-10, folders and archives, all brought into one kind of pack."""
