"""Published weights in, ours out: the flat npz of the original code, and safetensors with timm's or transformers' names."""
