"""What is lost without heads, sublayers and attention between the views: `study` puts together what `sets` names and `sweeps` measure."""
