"""Whether an adapter may be activated: detectors, checks and their significance.

Flows in: an engine, the new adapter, the lesson's chats. Flows out: a GateReport. Not here:
training (adapt/trainer/), storing and activating adapters (models/).
"""
