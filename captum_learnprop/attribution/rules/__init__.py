"""Methods that explain by trainable rules, and the attributes of captum's own LRP."""
