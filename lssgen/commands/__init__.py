"""The commands: flags to one library call. The only room that parses, prints and exits."""

COMMANDS = {
    "run": "Paint pictures from a bundle; needs no torch.",
    "encode": "Write the embeddings of prompts, for runs without a text encoder; needs no torch.",
    "plan": "Print a run's stages, steps and predicted cost; loads no model.",
    "export": "Turn a checkpoint and a latent upsampler into a bundle of ONNX graphs.",
    "build": "Build, list, check and prune the compiled engines of a bundle; needs no torch.",
    "serve": "Serve bundles by HTTP, as OpenAI's Images API; needs no torch.",
    "export-triton": "Write a model repository for Triton's Python backend from a bundle.",
    "calibrate": "Measure the ranges of a bundle, quantise it, adopt another tool's graph; needs no torch.",
    "verify": "Compare every file of a bundle with what was exported.",
    "bench": "Measure a bundle, compare two, hold a gate, and explain which engine was chosen.",
    "train-upsampler": "Train a latent upsampler for a VAE on a folder of pictures.",
}
"""Effect of every command, by its name; `lssgen.commands.<name>` has its `build_parser` and `main`."""
