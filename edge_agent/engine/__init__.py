"""The worker process: one model, its slots and everything that touches tokens.

Flows in: records.ToWorker messages from the front process. Flows out: records.FromWorker messages.
Not here: starting and restarting workers (supervisor/), HTTP (server/).
"""
