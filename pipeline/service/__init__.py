"""The service: takes jobs over HTTP, runs each in a process of its own, and shows what was found.

The queue is a folder of small JSON objects below the root URL; a service that was killed goes on where it was.
"""
