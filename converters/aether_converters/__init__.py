"""From a checkpoint to fused, verified artefacts."""
