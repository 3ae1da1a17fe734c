"""Fine-tuning methods. `base` defines the interface.

The method NAME is `NAME.py`, and its options `options/NAME.py`, which planning imports without
torch. `beyond` has the methods beyond the benchmark's ten.
"""
