"""The parts of beside_vllm.py: workloads, engines that take turns, and servers under one load."""
