"""The paper's experiments, and the measurements that chose our defaults."""
