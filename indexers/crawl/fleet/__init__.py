"""A crawl on a Ray cluster: the list and the journal stay with one driver, models are fetched and probed by workers.

::

    address      is there a cluster at all
    cluster      what is asked of it; ray_cluster is the only module that talks to Ray
    staff        who hires workers; errands: who has which model
    crew         what the driver does: what becomes of models, and of those whose worker is lost
    actor        a worker's process; member: what happens in it, place: where, parcel: what it shows to models
    orders       what driver and workers tell each other
"""
