"""The laboratory: many methods on many scenes and nets, scored alike and put into tables."""
