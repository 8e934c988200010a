"""Reward functions for RL trainers: TRL (`cloud_hf.rl.trl`), OpenRLHF (`cloud_hf.rl.openrlhf`) and verl (`cloud_hf.rl.verl`).

Import only the module for your trainer; it does not need the packages of the other trainers.
"""
