"""The verbs users type, one file per noun: the only room that prints; heavy imports come late."""
