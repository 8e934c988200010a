"""Reward functions for RL trainers: TRL (`cloud_hf.rl.trl`), OpenRLHF (`cloud_hf.rl.openrlhf`) and verl (`cloud_hf.rl.verl`).

Import your trainer's module; it does not need the packages of the other trainers.
"""
