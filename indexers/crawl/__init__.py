"""The daemon that keeps an index current with a hub: it lists, fetches, probes and stores, and survives what it meets.

    listing   pages of models, from the Hub, a file of ids or a folder
    journal   what is known about every revision, and what is due
    fetching  the files a loader needs, within a budget of disk space
    worker    one model in one child process, within limits
    daemon    the pipeline of the four

Everything that a model can bring with it stays in the child; everything that must not be lost goes through the journal.
"""
