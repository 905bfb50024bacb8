"""What an encoder's kernel sees, before anything is trained with it. Open `measurement` first, then `verdict`.

`probe_images` are real images and those it should tell from them, `encoder_cost` is shapes, memory and speed,
`probe_record` is what is written, `probe_figure` draws it. The field itself is in `methods/drifting`.
"""
