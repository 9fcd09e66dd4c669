"""What pruning gains: latency, throughput, memory, and how much of what the roofline allows was realised."""
