export { BufferAttribute, BufferGeometry, DoubleSide, Group, LineBasicMaterial, LineSegments, Matrix4, Mesh, MeshBasicMaterial, PerspectiveCamera, Points, Quaternion, Scene, ShaderMaterial, SRGBColorSpace, Texture, Vector3, WebGLRenderer, LinearSRGBColorSpace } from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
