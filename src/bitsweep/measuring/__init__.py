"""Measures an artifact: each pass in a process of its own that has loaded no other engine.

    inspect          of an artifact that cannot be run here: size, kernels that would be executed
    evaluate         accuracy, parity, size, executed kernels; keeps the logits
    measure_latency  against the same engine's fp32, in interleaved blocks, and a GPU's own; keeps the raw samples
    measure_memory   peak memory of loading and running the artifact alone, a GPU's too

Every pass writes one JSON file of metrics, flags and details; `passes.load_measurement` puts them together. What the
metrics mean is said in docs/measurement.md.
"""
