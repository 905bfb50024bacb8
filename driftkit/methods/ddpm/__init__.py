"""The mathematics of DDPM: noise schedule, forward process and the samplers that turn noise into images."""
