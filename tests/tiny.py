"""Words of command lines for the smallest networks, images and trainings; campaigns use them without pytest."""

TINY_UNET = ["--set", "model.base_channels=8", "--set", "model.channel_multipliers=[1,2]", "--set", "model.num_heads=2",
             "--set", "model.attention_resolutions=[4]", "--set", "model.num_res_blocks=1"]  # fmt: skip
TINY_MAE = ["--set", "model.base_channels=8", "--set", "model.num_blocks=[1,1,1,1]"]
TINY_DATA = ["--data", "shapes?image_size=8&count=64"]
TINY_LOOP = ["--batch-size", "4", "--set", "trainer.log_every=1", "--sample-every", "2", "--device", "cpu"]
