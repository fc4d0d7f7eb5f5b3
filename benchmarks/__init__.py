"""Speed and memory against peers, as ratios of things that run in turn; results go to results/benchmarks/."""
