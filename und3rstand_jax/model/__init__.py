"""DUSt3R as a pure function of its parameters and two views, and the ids by which everything inside it is asked for."""
