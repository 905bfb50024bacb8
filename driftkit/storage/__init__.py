"""Files that driftkit writes and reads back: JSON and safetensors, written to a temporary name and renamed."""
