"""What the package costs and what it does on real work: ``python -m benchmarks`` lists the commands."""
