"""Reward functions for RL trainers: TRL (`cloud_hf.rl.trl`), OpenRLHF (`cloud_hf.rl.openrlhf`) and verl (`cloud_hf.rl.verl`).

Import the module of your trainer; it needs no other trainer's packages.
"""
