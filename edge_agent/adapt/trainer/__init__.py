"""The trainer process: it plans, trains and writes one adapter.

Flows in: a Start message, orders to pause, continue or stop, and the files of the run. Flows out:
progress, and an adapter file in the run's directory. Not here: starting the process
(adapt/trainer_control.py), the store, HTTP, the engine.
"""
