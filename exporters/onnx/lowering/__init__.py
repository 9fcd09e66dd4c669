"""From a checkpoint to a graph: the fused and the portable lowering, and fewer bits."""
